package jsonline

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestLine(t *testing.T) {
	t.Parallel()
	l := New()
	for i := 0; i < 2; i++ { // Begin empties the line
		l.Begin()
		l.String("string", "a")
		l.BeginObject("empty")
		l.EndObject()
		l.BeginObject("object")
		l.Int("int", -1)
		l.Float("float", 0.25)
		l.EndObject()
		l.JSON("json", json.RawMessage(`[{"n":1},null]`))
		l.Time("time", time.Date(2024, 2, 29, 23, 30, 0, 0, time.UTC), time.RFC3339)
		l.String("escapes", "\t\x01\"\\<")
		l.End()
		const want = `{"string":"a","empty":{},"object":{"int":-1,"float":0.25},"json":[{"n":1},null],"time":"2024-02-29T23:30:00Z","escapes":"\t\u0001\"\\<"}` + "\n"
		if got := string(l.Bytes()); got != want {
			t.Errorf("got\n%s, want\n%s", got, want)
		}
	}
}

// FuzzLine compares the line with what encoding/json reads in it.
func FuzzLine(f *testing.F) {
	for _, seed := range []struct {
		begin, value string
		number       float64
	}{
		{"", "", 0},
		{"quotes", `say "hi" \ back`, 0.001},
		{"control characters", "\x00\x1f\x7f\t\r\n", -1.5},
		{"markup", "<script>&amp;</script>", 1e21},
		{"invalid", "\xff\xfe, \xe9", 1e-9},
		{"line separators", "\u2028\u2029", 12345.678},
		{"{", "[", 3}, {"x{", "{[", 3},
	} {
		f.Add(seed.begin, seed.value, seed.number)
	}
	f.Fuzz(func(t *testing.T, begin, value string, number float64) {
		if number != number || number-number != 0 {
			return // not finite
		}
		l := New()
		l.Begin()
		l.BeginObject("strings")
		l.String("begin", begin)
		l.String("value", value)
		l.EndObject()
		l.Float("number", number)
		l.End()
		type line struct {
			Strings map[string]string
			Number  float64
		}
		var got line
		if err := json.Unmarshal(l.Bytes(), &got); err != nil {
			t.Fatalf("%v in %q", err, l.Bytes())
		}
		want := line{map[string]string{"begin": strings.ToValidUTF8(begin, "\ufffd"), "value": strings.ToValidUTF8(value, "\ufffd")}, number}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}
