"""What shards hold, for people and machines."""
