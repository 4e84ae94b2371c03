"""What only a machine with a GPU can show: tests, accuracy and speed on one, as one JSON file; see ../README.md."""
