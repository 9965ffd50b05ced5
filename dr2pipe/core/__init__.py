"""What all other folders use: configuration, files, pictures, processes, records, model names."""
