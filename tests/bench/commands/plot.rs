//! Lines over a logarithmic axis, as SVG.

use std::fmt::Write as _;
use std::path::Path;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
/// Left, right, top and bottom of the field.
const FIELD: [f64; 4] = [56.0, 616.0, 56.0, 250.0];
/// Of the lines, in turn: told apart by those who see few colours, on light and on dark.
const COLOURS: [&str; 3] = ["#0072b2", "#d55e00", "#009e73"];

pub(crate) struct Plot {
    pub(crate) file: &'static str,
    pub(crate) title: &'static str,
    /// What the horizontal axis counts.
    pub(crate) x: &'static str,
    pub(crate) lines: Vec<Line>,
}

pub(crate) struct Line {
    pub(crate) name: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

impl Plot {
    pub(crate) fn write(&self, directory: &Path) {
        std::fs::write(directory.join(self.file), self.svg()).expect("PLOTS is a directory");
    }

    fn svg(&self) -> String {
        let all = || self.lines.iter().flat_map(|line| &line.points);
        let low = all().map(|(x, _)| *x).fold(f64::INFINITY, f64::min);
        let high = all().map(|(x, _)| *x).fold(0.0, f64::max);
        let top = round_up(all().map(|(_, y)| *y).fold(0.0, f64::max));
        let [left, right, up, down] = FIELD;
        let x_of = |x: f64| left + (right - left) * (x / low).ln() / (high / low).ln();
        let y_of = |y: f64| down - (down - up) * y / top;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\" fill=\"#777\">\n\
             <text x=\"{left}\" y=\"20\" font-size=\"14\">{}</text>\n",
            self.title
        );
        for part in 0..=4 {
            let value = top * f64::from(part) / 4.0;
            let y = y_of(value);
            let _ = writeln!(
                svg,
                "<path d=\"M{left} {y:.1}H{right}\" stroke=\"#777\" stroke-opacity=\"0.3\"/>\
                 <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 8.0,
                y + 4.0,
                short(value)
            );
        }
        let mut marks: Vec<f64> = all().map(|(x, _)| *x).collect();
        marks.sort_by(f64::total_cmp);
        marks.dedup();
        for x in marks {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{x}</text>",
                x_of(x),
                down + 18.0
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{right}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            down + 36.0,
            self.x
        );
        for (number, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let mut path = String::new();
            for (index, (x, y)) in line.points.iter().enumerate() {
                let (x, y) = (x_of(*x), y_of(*y));
                let _ = write!(path, "{}{x:.1} {y:.1}", if index == 0 { 'M' } else { 'L' });
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
                );
            }
            let _ = writeln!(
                svg,
                "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
                 <text x=\"{}\" y=\"42\" fill=\"{colour}\">{}</text>",
                left + 280.0 * number as f64,
                line.name
            );
        }
        svg + "</svg>\n"
    }
}

/// The next number that is easy to read.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let step = [1.0, 2.0, 4.0, 5.0, 10.0].into_iter().find(|step| step * power >= value);
    step.unwrap_or(10.0) * power
}

fn short(value: f64) -> String {
    if value >= 10.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
