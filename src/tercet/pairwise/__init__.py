"""Rows against columns: distances, relations and tiles of them, in bounded memory."""
