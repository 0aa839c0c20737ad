package bench

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// The measures of a chart, in pixels.
const (
	panelWidth  = 760
	panelHeight = 300
	leftSpace   = 64
	rightSpace  = 150
	topSpace    = 34
	bottomSpace = 40
)

// colours are told apart also by who does not see all colours (Okabe and Ito); so are the
// marks by their form.
func colours() []string {
	return []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f"}
}

// SVG is the figures as a picture: a panel for each test, a line for each way.
func SVG(p Plan, all []Series) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12" role="img">`+"\n",
		panelWidth, panelHeight*len(p.Tests))
	fmt.Fprintf(&b, "<title>%s</title>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n", html.EscapeString("netctl bench: "+strings.Join(wayNames(all), ", ")))
	for i, t := range p.Tests {
		fmt.Fprintf(&b, "<g transform=\"translate(0,%d)\">\n", i*panelHeight)
		panel(&b, t, p.Sizes, all)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

func wayNames(all []Series) (list []string) {
	for _, s := range all {
		list = append(list, s.Way)
	}
	return list
}

// panel draws one test: sizes to the right, by their logarithm, figures up.
func panel(b *strings.Builder, t Test, sizes []int, all []Series) {
	top := 0.0
	for _, s := range all {
		for _, size := range sizes {
			if r, ok := s.of(t, size); ok {
				top = max(top, r.figure())
			}
		}
	}
	top = niceAbove(top)
	width, height := float64(panelWidth-leftSpace-rightSpace), float64(panelHeight-topSpace-bottomSpace)
	first, last := math.Log2(float64(sizes[0])), math.Log2(float64(sizes[len(sizes)-1]))
	x := func(size int) float64 {
		if first == last {
			return leftSpace + width/2
		}
		return leftSpace + width*(math.Log2(float64(size))-first)/(last-first)
	}
	y := func(v float64) float64 { return topSpace + height*(1-v/top) }
	fmt.Fprintf(b, "<text x=\"%d\" y=\"18\" font-size=\"14\" font-weight=\"bold\">%s</text>\n", leftSpace, html.EscapeString(t.title()))
	for i := range 5 {
		v := top * float64(i) / 4
		fmt.Fprintf(b, "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1[3]f\" stroke=\"#ddd\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
			leftSpace, panelWidth-rightSpace, y(v), leftSpace-6, y(v)+4, short(v))
	}
	room := math.Inf(-1)
	for _, size := range sizes {
		if x(size) < room+28 {
			continue // its label would lie on the one before
		}
		room = x(size)
		fmt.Fprintf(b, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", room, panelHeight-bottomSpace+16, sizeText(size))
	}
	for i, s := range all {
		palette := colours()
		colour := palette[i%len(palette)]
		var points []string
		for _, size := range sizes {
			r, ok := s.of(t, size)
			if !ok {
				continue
			}
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(size), y(r.figure())))
			mark(b, i, x(size), y(r.figure()), colour, fmt.Sprintf("%s, %s: %.1f %s", s.Way, sizeText(size), r.figure(), t.unit()))
		}
		fmt.Fprintf(b, "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n", strings.Join(points, " "), colour)
		at := topSpace + 8 + 20*i
		mark(b, i, panelWidth-rightSpace+20, float64(at), colour, s.Way)
		fmt.Fprintf(b, "<text x=\"%d\" y=\"%d\">%s</text>\n", panelWidth-rightSpace+32, at+4, html.EscapeString(s.Way))
	}
}

// mark is a point of a way: round, square or pointed, so that colour does not tell alone.
func mark(b *strings.Builder, i int, x, y float64, colour, says string) {
	title := "<title>" + html.EscapeString(says) + "</title>"
	switch i % 3 {
	case 0:
		fmt.Fprintf(b, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\">%s</circle>\n", x, y, colour, title)
	case 1:
		fmt.Fprintf(b, "<rect x=\"%.1f\" y=\"%.1f\" width=\"8\" height=\"8\" fill=\"%s\">%s</rect>\n", x-4, y-4, colour, title)
	default:
		fmt.Fprintf(b, "<path d=\"M%.1f %.1fl5 9h-10z\" fill=\"%s\">%s</path>\n", x, y-5, colour, title)
	}
}

// niceAbove is the next of 1, 2, 2.5 and 5 times a power of ten.
func niceAbove(v float64) float64 {
	if v <= 0 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, n := range []float64{1, 2, 2.5, 5} {
		if n*power >= v {
			return n * power
		}
	}
	return 10 * power
}

func short(v float64) string { return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0") }

// HTML is a page with the picture and the tables; it needs nothing else.
func HTML(p Plan, all []Series) []byte {
	var b strings.Builder
	b.WriteString("<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>netctl bench</title>\n" +
		"<style>body{font-family:sans-serif;margin:2em;max-width:60em}pre{font-size:13px}</style>\n<h1>netctl bench</h1>\n")
	b.Write(SVG(p, all))
	fmt.Fprintf(&b, "<pre>%s</pre>\n</html>\n", html.EscapeString(Text(p, all)))
	return []byte(b.String())
}
