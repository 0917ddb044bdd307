"""What every stage stands on: storage, tables, the store, Ray."""
