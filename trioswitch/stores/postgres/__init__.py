"""A store in a PostgreSQL database, shared by nodes on several machines."""
