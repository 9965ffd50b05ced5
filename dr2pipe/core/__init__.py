"""What every room stands on: configurations, files, pictures, processes, records, names of models."""
