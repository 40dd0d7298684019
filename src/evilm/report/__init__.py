"""What is shown to people: tables, figures, cost."""
