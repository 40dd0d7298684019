"""The same work on many machines, by Ray.

runner   decode and embed the files of an index on a Ray cluster
"""
