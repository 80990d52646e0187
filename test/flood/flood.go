// Package flood tests the service under clients that do not behave, and under more of those that do
// than fit. Its tests need the build tag flood.
package flood
