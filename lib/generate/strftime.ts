const months =
  "January February March April May June July August September October November December";
const days = "Sunday Monday Tuesday Wednesday Thursday Friday Saturday";

/**
 * The time as Python's `strftime` writes it in the C locale, for chat templates that name the day.
 * A directive that is not known stays as it is.
 */
export function strftime(date: Date, format: string): string {
  const padded = (value: number, width = 2, fill = "0") => String(value).padStart(width, fill);
  const month = months.split(" ")[date.getMonth()] as string;
  const day = days.split(" ")[date.getDay()] as string;
  const hour12 = date.getHours() % 12 || 12;
  const dayOfYear = () => {
    const start = Date.UTC(date.getFullYear(), 0, 1);
    const today = Date.UTC(date.getFullYear(), date.getMonth(), date.getDate());
    return (today - start) / 86_400_000 + 1;
  };
  const values: Readonly<Record<string, () => string>> = {
    Y: () => padded(date.getFullYear(), 4),
    y: () => padded(date.getFullYear() % 100),
    m: () => padded(date.getMonth() + 1),
    d: () => padded(date.getDate()),
    e: () => padded(date.getDate(), 2, " "),
    H: () => padded(date.getHours()),
    I: () => padded(hour12),
    M: () => padded(date.getMinutes()),
    S: () => padded(date.getSeconds()),
    f: () => padded(date.getMilliseconds() * 1000, 6),
    p: () => (date.getHours() < 12 ? "AM" : "PM"),
    B: () => month,
    b: () => month.slice(0, 3),
    h: () => month.slice(0, 3),
    A: () => day,
    a: () => day.slice(0, 3),
    w: () => String(date.getDay()),
    u: () => String(date.getDay() || 7),
    j: () => padded(dayOfYear(), 3),
    F: () => strftime(date, "%Y-%m-%d"),
    T: () => strftime(date, "%H:%M:%S"),
    R: () => strftime(date, "%H:%M"),
    D: () => strftime(date, "%m/%d/%y"),
    x: () => strftime(date, "%m/%d/%y"),
    X: () => strftime(date, "%H:%M:%S"),
    c: () => strftime(date, "%a %b %e %H:%M:%S %Y"),
    "%": () => "%",
  };
  // "%-d" is glibc's form without padding.
  return format.replace(/%(-?)([A-Za-z%])/g, (whole, bare: string, letter: string) => {
    const text = values[letter]?.();
    if (text === undefined) return whole;
    return bare ? text.replace(/^[0 ]+(?=.)/, "") : text;
  });
}
