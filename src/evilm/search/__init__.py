"""Search over folders of videos: from files to moments, from moments to vectors, from a query to hits.

In the order in which things happen:

    scan        which files are new, changed, moved, gone           (folder -> Changes)
    moments     where a video is cut                                (reader -> [(start, end)])
    decoding    a file's moments and their frames, in processes that may be killed
    pipeline    decoding and encoding side by side                  (files -> vectors)
    catalogue   SQLite, the only truth: files, moments, vectors
    matrix      the vectors as one memory-mapped array: a cache
    ranking     the nearest rows of it: one method, three stores
    calibration what a cosine is worth
    index       ``VideoIndex``: all of it, for people
"""
