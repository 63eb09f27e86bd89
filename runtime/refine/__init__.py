"""After the merge: borders that follow the image's edges, small regions given to their neighbours."""
