"""Numbers from samples: per round first, then over the rounds, then ratios of the same round."""

import statistics


def percentile(samples, percent):
    """Return the nearest-rank percentile."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def of_round(samples):
    """Return one round's numbers."""
    return {"median": statistics.median(samples), "p99": percentile(samples, 99), "n": len(samples)}


def quartiles(values):
    """Return the first and third quartile; the value itself if there is only one."""
    if len(values) < 2:
        return [values[0], values[0]]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]


def of_rounds(rounds):
    """Return what the rounds say together: the middle round, and how far they lie apart."""
    medians = [numbers["median"] for numbers in rounds]
    return {
        "median": statistics.median(medians),
        "p99": statistics.median([numbers["p99"] for numbers in rounds]),
        "iqr": quartiles(medians),
        "samples": sum(numbers["n"] for numbers in rounds),
        "rounds": rounds,
    }


def ratio(above, below):
    """Return median and quartiles of a ratio that is taken within each round."""
    values = [a / b for a, b in zip(above, below, strict=True)]
    return {"value": statistics.median(values), "iqr": quartiles(values)}
