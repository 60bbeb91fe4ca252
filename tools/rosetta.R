# The models of the chapter Rosetta fitted by R: estimates into a table.
#
#   Rscript tools/rosetta.R data/estimation/nlme.csv
#
# Needs the packages nlme and lme4. The chapter shows the calls above "the table" as they stand here.
suppressPackageStartupMessages({
  library(nlme)
  library(lme4)
})

# theophylline
one_compartment <- function(dose, t, lka, lCl, lV) {
  ka <- exp(lka); CL <- exp(lCl); V <- exp(lV)
  dose * ka / (V * ka - CL) * (exp(-CL / V * t) - exp(-ka * t))
}
theoph <- subset(transform(Theoph, amount = Dose * Wt), Time > 0)
theophylline <- nlme(conc ~ one_compartment(amount, Time, lka, lCl, lV), data = theoph, groups = ~ Subject,
                     fixed = list(lka + lV ~ 1, lCl ~ Wt), random = pdDiag(lka + lV + lCl ~ 1),
                     start = c(0.5, 3.4, 1, 0))

# soybean
soybean <- nlme(nlsList(weight ~ SSlogis(Time, Asym, xmid, scal) | Plot, data = Soybean))

# orange
orange <- nlmer(circumference ~ SSlogis(age, Asym, xmid, scal) ~ Asym | Tree, data = Orange,
                start = c(Asym = 200, xmid = 725, scal = 350))

# the table
sds <- function(fit) as.numeric(VarCorr(fit)[, "StdDev"])
rows <- function(model, values) {
  data.frame(model = model, name = names(values), value = signif(unname(values), 7))
}
found <- sds(theophylline)
effects <- fixef(theophylline)
table <- rows("theophylline", c(
  exp(effects["lka"]), exp(effects["lV"]), exp(effects["lCl.(Intercept)"]), effects["lCl.Wt"], found[4],
  found[1]^2, found[2]^2, found[3]^2, -2 * as.numeric(logLik(theophylline))
))
table$name <- c("ka", "V", "CL at weight 0", "Wt on log CL", "sigma",
                "variance of log ka", "variance of log V", "variance of log CL", "-2 log-likelihood")
values <- c(fixef(soybean), sds(soybean), as.numeric(logLik(soybean)))
names(values) <- c("Asym", "xmid", "scal", "sd Asym", "sd xmid", "sd scal", "sigma", "log-likelihood")
table <- rbind(table, rows("soybean", values))
spread <- as.data.frame(VarCorr(orange))$sdcor
values <- c(fixef(orange), "sd Asym" = spread[1], sigma = spread[2], "log-likelihood" = as.numeric(logLik(orange)))
table <- rbind(table, rows("orange", values))

versions <- c(R = as.character(getRversion()), nlme = as.character(packageVersion("nlme")),
              lme4 = as.character(packageVersion("lme4")))
cat(paste(names(versions), versions, collapse = ", "), "\n")
print(table, row.names = FALSE, digits = 7)
target <- commandArgs(trailingOnly = TRUE)
if (length(target)) write.csv(table, target[1], row.names = FALSE, quote = FALSE)
