"""The same work on many machines, by Ray.

dispatch   give items of work to actors, and collect their answers, whatever dies
runner     decode and embed the files of an index
jobs       check videos, pack clips, compute token labels
launch     train and evaluate with several processes, by Ray Train
plan       hours, storage and cost of large data sets, beforehand
"""
