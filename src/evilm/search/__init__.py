"""Search in folders of videos.

index        ``VideoIndex``: the public interface
update       bring an index up to date with a folder
source       folder, list or address; shards
remote       videos at addresses of fsspec
merge        join the indexes of shards
scan         find new, changed, moved and deleted files
segments     cut a video into segments
pipeline     decode and embed segments
model        the model of an index
database     SQLite: files, segments and vectors
vectors      all vectors as one memory-mapped array, a cache
nearest      nearest neighbours by NumPy, FAISS or LanceDB
ranking      the best rows of a set of scores
qdrant       nearest neighbours by a Qdrant server
table        write an index as Parquet files
calibration  from cosines to scores
query        queries, filters and hits
"""
