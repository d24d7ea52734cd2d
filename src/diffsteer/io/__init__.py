"""Files: atomic writes, strict readers, shards, images, processes."""
