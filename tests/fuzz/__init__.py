"""Whatever people bring: files and settings made at random, a few in every run of the tests, many by `make fuzz`."""
