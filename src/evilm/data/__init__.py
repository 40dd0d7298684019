"""From files to batches: readers, decoding, words, caches, and the procedural world."""
