"""The experiment of the chapter on the free energy: what it learns, with what, and what the ledger's rules are judged on."""
