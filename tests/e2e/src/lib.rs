//! Helpers of the end-to-end tests, which drive the binary and the API from outside.
