"""Compare recorded runs: tables, plots and one HTML page. The runs are read through `tracking` alone."""
