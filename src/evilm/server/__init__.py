"""HTTP server and web page for search, questions and runs; needs the extra ``[serve]``.

app        the routes and their request and response models
security   hosts, origins, token, limits and headers of every request
library    the open index: batched searches, segments, videos, questions
media      stills, playable versions and exported clips, made in decoder processes
scans      scans of folders in a process of their own
runs       training runs as JSON
static/    the page
"""

from __future__ import annotations
