"""What a study, a sweep or a folder run leaves for people: tables, plots and pages."""
