"""What every stage needs and no stage owns: errors, atomic files, fingerprints, strict configs, progress."""
