#include "table.hpp"

#include <algorithm>

namespace shmctl {

namespace {

constexpr std::size_t kGap = 2;              // Blanks between columns.
constexpr std::size_t kShrunkWidthMin = 12;  // No column is cut to less.

std::size_t total_of(const std::vector<std::size_t>& widths) {
  std::size_t total = 0;
  for (std::size_t width : widths) {
    if (width > 0) total += width + (total > 0 ? kGap : 0);
  }
  return total;
}

bool continues(char c) {
  return (static_cast<unsigned char>(c) & 0xc0U) == 0x80U;
}

}  // namespace

std::size_t display_width(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return !continues(c); }));
}

std::string cut_text(std::string_view text, std::size_t width) {
  if (display_width(text) <= width) return std::string(text);
  const std::string_view mark = utf8_wanted() ? "…" : "~";
  std::size_t end = 0;
  for (std::size_t kept = 1; kept < width; ++kept) {
    ++end;
    while (end < text.size() && continues(text[end])) ++end;
  }
  return std::string(text.substr(0, end)) + std::string(width == 0 ? "" : mark);
}

void Table::add_plain(std::vector<std::string> texts) {
  std::vector<Cell> row;
  for (std::string& text : texts) row.push_back({std::move(text), Style::plain});
  rows_.push_back(std::move(row));
}

std::vector<std::size_t> Table::full_widths() const {
  std::vector<std::size_t> widths;
  for (const Column& column : columns_) widths.push_back(display_width(column.title));
  for (const std::vector<Cell>& row : rows_) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], display_width(row[i].text));
    }
  }
  return widths;
}

void Table::drop_columns(std::vector<std::size_t>& widths, std::size_t limit) const {
  for (std::size_t i = columns_.size(); i-- > 0;) {
    std::vector<std::size_t> least = widths;
    for (std::size_t k = 0; k < least.size(); ++k) {
      if (columns_[k].shrinks) least[k] = std::min(least[k], kShrunkWidthMin);
    }
    if (total_of(least) <= limit) return;
    if (columns_[i].drops) widths[i] = 0;
  }
}

void Table::cut_columns(std::vector<std::size_t>& widths, std::size_t limit) const {
  while (total_of(widths) > limit) {
    std::size_t widest = columns_.size();
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      if (!columns_[i].shrinks || widths[i] <= kShrunkWidthMin) continue;
      if (widest == columns_.size() || widths[i] > widths[widest]) widest = i;
    }
    if (widest == columns_.size()) return;
    --widths[widest];
  }
}

std::vector<std::size_t> Table::widths(std::size_t limit) const {
  std::vector<std::size_t> widths = full_widths();
  if (limit == 0) return widths;
  drop_columns(widths, limit);
  cut_columns(widths, limit);
  return widths;
}

std::string Table::line(const std::vector<Cell>& row, const std::vector<std::size_t>& widths,
                        bool colour) const {
  std::string line;
  std::size_t blanks = 0;  // Owed, so that no line ends in blanks.
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (widths[i] == 0) continue;
    const std::string text = cut_text(row[i].text, widths[i]);
    const std::size_t rest = widths[i] - display_width(text);
    if (columns_[i].align == Align::right) blanks += rest;
    if (!text.empty()) {
      line += std::string(blanks, ' ') + paint(row[i].style, text, colour);
      blanks = 0;
    }
    if (columns_[i].align == Align::left) blanks += rest;
    blanks += kGap;
  }
  return line;
}

std::vector<std::string> Table::lines(int width, bool colour) const {
  const std::vector<std::size_t> fitted = widths(static_cast<std::size_t>(std::max(width, 0)));
  std::vector<Cell> heading;
  for (const Column& column : columns_) heading.push_back({column.title, Style::bold});
  std::vector<std::string> lines = {line(heading, fitted, colour)};
  for (const std::vector<Cell>& row : rows_) lines.push_back(line(row, fitted, colour));
  return lines;
}

void Table::print() const {
  for (const std::string& text : lines(terminal_columns(), colour_wanted(stdout))) say(text);
}

}  // namespace shmctl
