"""An actor's transitions and marks become episodes: each kind of end, parts, gaps, positions."""

import numpy as np
import pytest

from agentlace.recorder import builder as builder_module
from agentlace.recorder.builder import EpisodeBuilder, nbytes_of
from agentlace.recorder.episodes import CUT, GAP, LEFT, REPLACED, VANISHED, Counts
from agentlace.recorder.ledger import Book, stores_in, to_cursor
from agentlace.transport.streams import START, StreamId

from .support import FIRST, Feed, numbers, row


@pytest.fixture
def feed():
    return Feed()


class TestMarkedEpisodes:
    @pytest.mark.parametrize("how", ["terminated", "truncated", "aborted"])
    def test_an_end_says_how(self, feed, how):
        feed.begin(task="stack")
        feed.rows(row(0), row(1))
        feed.end(how, success=True)
        assert feed.episodes == [([0, 1], how, "")]
        assert feed.finished[0].thread.metadata == {"task": "stack", "success": True}
        assert feed.builder.counts == Counts(sent=1)

    def test_only_marks_end_them(self, feed):
        feed.begin()
        feed.rows(row(0), row(1, last=True), row(7), row(8))
        assert not feed.finished
        feed.end("terminated")
        assert feed.episodes == [([0, 1, 7, 8], "terminated", "")]

    def test_one_that_the_next_one_follows(self, feed):
        feed.begin()
        feed.rows(row(0), row(1, last=True, masks=0.0))
        feed.begin()
        feed.rows(row(5))
        feed.begin()
        assert feed.episodes == [([0, 1], "terminated", ""), ([5], "aborted", "")]
        assert feed.builder.counts == Counts(sent=2)

    def test_without_transitions(self, feed):
        feed.begin()
        feed.end("terminated")
        feed.begin()
        feed.begin()
        feed.rows(row(0))
        feed.end("terminated")
        assert feed.episodes == [([0], "terminated", "")]
        assert feed.builder.counts == Counts(sent=3, empty=2)

    def test_a_discarded_one_is_dropped(self, feed):
        feed.begin()
        feed.rows(row(0), row(1))
        feed.discard()
        feed.begin()
        feed.rows(row(5))
        feed.end("truncated")
        assert feed.episodes == [([5], "truncated", "")]
        assert feed.builder.counts == Counts(sent=1, discarded=1)

    def test_an_end_without_a_beginning(self, feed):
        feed.rows(row(0), row(1))
        feed.episode = 1
        feed.end("aborted")
        feed.rows(row(2))
        feed.episode = 2
        feed.end("truncated")
        assert feed.episodes == [([0, 1], "aborted", ""), ([2], "truncated", "")]
        assert feed.builder.counts == Counts(sent=2)

    def test_an_end_that_the_transitions_told_before(self, feed):
        for n in (1, 2):
            feed.rows(row(0), row(1, last=True))
            feed.episode = n
            feed.end("terminated")
        assert feed.episodes == [([0, 1], "terminated", "")] * 2
        assert feed.builder.counts == Counts(sent=2)

    def test_what_is_between_episodes_is_one_too(self, feed):
        feed.begin()
        feed.rows(row(0))
        feed.end("terminated")
        feed.rows(row(5), row(6))
        feed.begin()
        assert feed.episodes == [([0], "terminated", ""), ([5, 6], "aborted", "")]


class TestTransitionsThatTell:
    def test_each_end_begins_another(self, feed):
        feed.rows(row(0), row(1, last=True), row(0), row(1, last=True, masks=1.0), row(0))
        assert feed.episodes == [([0, 1], "terminated", ""), ([0, 1], "truncated", "")]
        assert feed.builder.open_rows == 1

    def test_a_next_observation_that_does_not_continue(self, feed):
        feed.rows(row(0), row(1), row(2))
        feed.rows(row(10), row(11))
        assert feed.episodes == [([0, 1, 2], "truncated", "")]
        assert np.array_equal(feed.finished[0].rows[-1]["next_observations"], np.full(3, 3))

    def test_next_observations_that_never_continue_tell_nothing(self, feed):
        feed.rows(*(row(10 * n) for n in range(20)), row(1, last=True))
        assert [len(f.rows) for f in feed.finished] == [21]

    def test_without_next_observations(self, feed):
        rows = [{k: v for k, v in row(n).items() if k != "next_observations"} for n in range(3)]
        rows[-1]["dones"] = True
        feed.rows(*rows)
        after = [r["next_observations"][0] for r in feed.finished[0].rows]
        assert after == [1, 2, 2]

    def test_observations_are_kept_once(self, feed):
        for n in range(3):
            feed.rows(row(n))
        rows = feed.builder.rows
        assert rows[0]["next_observations"] is rows[1]["observations"]
        assert rows[1]["next_observations"] is rows[2]["observations"]


class TestParts:
    def test_a_large_one_is_cut(self, feed):
        size = nbytes_of(row(0)) + builder_module.ROW_OVERHEAD_BYTES
        feed.builder.limit_bytes = int(2.5 * size)
        feed.begin(task="x")
        feed.rows(*(row(n) for n in range(7)))
        feed.end("terminated", ok=True)
        assert feed.episodes == [
            ([0, 1], "truncated", CUT),
            ([2, 3], "truncated", CUT),
            ([4, 5], "truncated", CUT),
            ([6], "terminated", ""),
        ]
        assert [f.thread.part for f in feed.finished] == [1, 2, 3, 4]
        assert [f.rows[-1]["next_observations"][0] for f in feed.finished] == [2, 4, 6, 7]
        assert len({f.thread.id for f in feed.finished}) == 1
        assert feed.finished[-1].thread.metadata == {"task": "x", "ok": True}
        assert feed.builder.counts == Counts(sent=1)

    def test_one_that_is_too_large_for_a_new_limit_is_cut(self, feed):
        feed.rows(row(0), row(1), row(2))
        feed.builder.limit_bytes = nbytes_of(row(0)) + builder_module.ROW_OVERHEAD_BYTES + 8
        assert [numbers(f.rows) for f in feed.builder.cut_if_large()] == [[0, 1]]
        assert not feed.builder.cut_if_large()
        assert feed.builder.floor == StreamId(FIRST, 2)
        feed.builder.limit_bytes = 1
        assert [numbers(f.rows) for f in feed.builder.cut_if_large()] == [[2]]
        assert feed.builder.floor == StreamId(FIRST, 3)

    def test_the_end_of_one_that_was_cut_is_not_lost(self, feed):
        feed.builder.limit_bytes = 1
        feed.begin()
        for n in range(3):
            feed.rows(row(n))
        feed.end("terminated")
        assert feed.episodes[-1] == ([2], "terminated", "")

    def test_a_vanished_actor_comes_back(self, feed):
        feed.begin()
        feed.rows(row(0), row(1))
        feed._note(feed.builder.abort(VANISHED))
        assert feed.builder.floor == feed.at
        feed.rows(row(2))
        feed.end("terminated")
        assert feed.episodes == [([0, 1], "aborted", VANISHED), ([2], "terminated", "")]
        assert [f.thread.part for f in feed.finished] == [1, 2]
        assert feed.builder.counts == Counts(sent=1)

    def test_a_vanished_actor_only_comes_back_to_end_it(self, feed):
        feed.begin()
        feed.rows(row(0))
        feed._note(feed.builder.abort(VANISHED))
        feed.end("terminated")
        feed.begin()
        feed.rows(row(5))
        feed.end("terminated")
        assert feed.episodes == [([0], "aborted", VANISHED), ([5], "terminated", "")]
        assert feed.builder.counts == Counts(sent=2)

    def test_an_actor_that_has_left_does_not_come_back(self, feed):
        feed.begin()
        feed.rows(row(0))
        feed._note(feed.builder.abort(LEFT))
        assert feed.builder.thread is None
        feed.begin()
        feed._note(feed.builder.abort(LEFT))
        assert not feed.builder.is_open
        assert feed.builder.counts == Counts(sent=2, empty=1)

    def test_what_was_cut_and_is_discarded_stays_as_far_as_it_was_written(self, feed):
        feed.builder.limit_bytes = 1
        feed.begin()
        feed.rows(row(0), row(1))
        feed.discard()
        assert feed.episodes == [([0], "truncated", CUT)]
        assert feed.builder.counts == Counts(sent=1, discarded=1)


class TestWhatIsMissing:
    def test_an_actor_that_was_started_anew(self, feed):
        feed.begin()
        feed.rows(row(0), row(1))
        feed.incarnation, feed.number, feed.episode = FIRST + 1, 0, 0
        feed.rows(row(5), row(6, last=True))
        assert feed.episodes == [([0, 1], "aborted", REPLACED), ([5, 6], "terminated", "")]
        assert feed.builder.counts == Counts(sent=2)

    def test_a_gap(self, feed):
        feed.rows(row(0), row(1))
        feed.skip(3)
        feed.rows(row(2), row(3, last=True))
        assert feed.episodes == [([0, 1], "aborted", GAP), ([2, 3], "terminated", "")]
        assert feed.builder.counts == Counts(sent=2, lost=3)
        assert not feed.builder.counts.is_complete

    def test_whole_episodes_that_never_came_are_counted(self, feed):
        for n in range(2):
            feed.begin()
            feed.rows(row(n))
            feed.end("terminated")
        feed.skip(6)
        feed.episode = 4
        feed.begin()
        feed.rows(row(5))
        feed.end("terminated")
        assert len(feed.finished) == 3
        assert feed.builder.counts == Counts(sent=5, lost=6)

    def test_what_was_before_a_recorder_came_is_not_missing(self):
        feed = Feed(number=100)
        feed.episode = 7
        feed.begin()
        feed.rows(row(0))
        feed.end("terminated")
        assert feed.builder.counts == Counts(sent=1)

    def test_rows_that_are_no_dicts(self, feed):
        feed.rows(1, 2, 3)
        feed.episode = 1
        feed.end("terminated")
        assert feed.finished[0].rows == [1, 2, 3]


class TestPositions:
    """Nothing behind the floor is lost by going on from there; nothing before comes again."""

    def test_it_is_before_what_is_open(self, feed):
        assert feed.builder.floor == START
        feed.rows(row(0), row(1, last=True))
        assert feed.builder.floor == StreamId(FIRST, 2)
        feed.begin()
        assert feed.builder.floor == StreamId(FIRST, 2)
        feed.rows(row(0), row(1))
        assert feed.builder.floor == StreamId(FIRST, 2)
        feed.end("terminated")
        assert feed.builder.floor == StreamId(FIRST, 6)
        feed.rows(row(0))
        assert feed.builder.floor == StreamId(FIRST, 6)

    def test_any_restart_gives_the_same_episodes(self):
        """Whatever was sent, and wherever it is interrupted, is built once and the same."""
        script = [
            *("row 0", "row 1", "done 2", "row 5", "begin", "row 10", "row 11", "begin"),
            *("row 20", "end", "row 30", "row 31", "row 40", "row 41", "begin", "row 50"),
            *("discard", "begin", "row 60", "vanish", "row 61", "end", "row 70", "new"),
            *(
                "row 80",
                "done 81",
                "small",
                "row 82",
                "row 83",
                "done 84",
                "large",
                "begin",
                "row 90",
                "end",
                "skip",
                "row 95",
                "done 96",
            ),
        ]
        whole = self.play(script, None)
        assert len(whole[0]) > 9
        for stop in range(1, len(script)):
            assert self.play(script, stop) == whole, script[stop]

    def play(self, script, stop):
        feed, kept, played = Feed(), [], []
        for number, line in enumerate(script):
            if number == stop:
                feed = self.restarted(feed, played)
            self.step(feed, line)
            played.append((line, feed.at))
        kept = [(numbers(f.rows), f.ending, f.reason, f.thread.part) for f in feed.finished]
        return kept, feed.builder.counts

    def restarted(self, feed, played):
        """Return what a recorder that was started anew has read, once it is where it was."""
        book = Book()
        book.builders["robot"] = feed.builder
        cursor = to_cursor({"prefix": book}, {})
        again = Feed(Book.of(stores_in(cursor)["prefix"]).builders["robot"])
        again.finished = list(feed.finished)
        again.incarnation, again.episode, floor = feed.incarnation, feed.episode, feed.builder.floor
        episode = 0
        for line, at in played:
            episode += line == "begin"
            episode *= line != "new"
            if line in ("small", "large"):
                self.step(again, line)
            elif line not in ("vanish", "skip", "new") and at > floor:
                again.incarnation, again.number = at.incarnation, at.number - 1
                again.episode = episode - (line == "begin")
                self.step(again, line)
        again.incarnation, again.number, again.episode = feed.incarnation, feed.number, episode
        return again

    def step(self, feed, line):
        what, *n = line.split()
        if what in ("row", "done"):
            feed.rows(row(int(n[0]), last=what == "done"))
        elif what == "vanish":
            feed._note(feed.builder.abort(VANISHED))
        elif what in ("small", "large"):
            feed.builder.limit_bytes = 1 if what == "small" else 1 << 40
        elif what == "new":
            feed.incarnation, feed.number, feed.episode = feed.incarnation + 1, 0, 0
        elif what == "skip":
            feed.skip(2)
        elif what == "end":
            feed.end("truncated")
        else:
            getattr(feed, what)()


def test_the_policy_of_each_step(feed):
    feed.rows(row(0), meta={"policy": [17, 4]})
    feed.rows(row(1, policy_version=9))
    feed.rows(row(2), meta={"policy": "rubbish"})
    assert [int(r["policy_version"]) for r in feed.builder.rows] == [4, 9, -1]


def test_a_builder_begins_empty():
    builder = EpisodeBuilder(StreamId(FIRST, 7))
    assert (builder.floor, builder.is_open, builder.open_rows) == (StreamId(FIRST, 7), False, 0)
