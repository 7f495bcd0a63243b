"""Charts and pictures as SVG text, and the page that holds them: no scripts, nothing fetched."""
