"""The reference models of the catalog: where their weights come from and the real data they are judged by."""
