"""The commands of `vmoe`, one file each with a function run(given); `vmoe.cli` has their table."""
