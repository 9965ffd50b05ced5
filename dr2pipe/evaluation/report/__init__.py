"""What a study or a sweep leaves for people: tables, plots and pages."""
