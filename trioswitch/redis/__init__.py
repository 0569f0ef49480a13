"""What the Redis broker and the Redis store share: the URL, and a connection that sends commands in batches."""
