"""Data sets: a catalogue, a prepared form of Parquet shards that any tool reads, and the order samples are seen in."""
