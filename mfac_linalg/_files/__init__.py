"""Files and folders of inverses, written atomically and checked when they are read."""
