"""The site's own tamper-evident record, and the witness of the hub's."""
