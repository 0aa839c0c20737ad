package commands

import "time"

// clock is a time of day, or a date if it is a day ago or more.
func clock(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	if now.Sub(t) >= 24*time.Hour {
		return t.Local().Format(time.DateOnly)
	}
	return t.Local().Format(time.TimeOnly)
}

// since is a duration as people say it: 17 minutes.
func since(d time.Duration) string {
	d = max(d, 0)
	for _, u := range []struct {
		unit time.Duration
		noun string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}} {
		if d >= u.unit {
			return count(int(d/u.unit), u.noun)
		}
	}
	return count(int(d/time.Second), "second")
}
