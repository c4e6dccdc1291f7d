"""What concerns this machine's own processes: `gwtf pause` and `resume`, how a verb ends, starting again after a crash."""
