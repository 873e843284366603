"""The paper, regenerated: a ledger of runs, and what it says beside the published numbers."""
