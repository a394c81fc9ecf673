"""Correspondence, EiCue and object-centric contrast, and their sum."""
