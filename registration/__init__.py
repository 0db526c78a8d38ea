"""Registration: fields, networks, similarity and regularity losses, alignment, metrics and file formats."""
