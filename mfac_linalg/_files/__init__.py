"""Files and folders: nothing damaged is read, nothing half-written takes the place of what was there."""
