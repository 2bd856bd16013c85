"""What everything stands on: errors, typed settings, the job frame, files, statistics, pages. Knows no model."""
