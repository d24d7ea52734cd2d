"""Noise levels, schedules, prediction types and samplers; imports torch alone."""
