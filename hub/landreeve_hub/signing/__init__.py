"""The keys that vouch: TUF roles of the hub."""
