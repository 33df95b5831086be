"""What was recorded of many runs, compared: tables, figures and one HTML page. Reads through `tracking` alone."""
