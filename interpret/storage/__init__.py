"""Files that outlive a kill: run folders, and hashes of what their numbers come from."""
