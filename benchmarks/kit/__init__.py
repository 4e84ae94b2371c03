"""What mfac_linalg.testing finds in inverses that are not ours."""
