"""One web page that shows the whole system, live: ``agentlace dashboard``.

A :class:`~agentlace.dashboard.feed.Feed` reads the broker once a second, as a user that may only
read, and keeps the last half hour. The page gets what it shows as server-sent events. Nothing is
loaded from elsewhere: the plots' library (uPlot, MIT) lies in ``static/``.
"""
