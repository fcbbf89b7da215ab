"""One page about one run or several: settings, curves, pictures, scores."""
