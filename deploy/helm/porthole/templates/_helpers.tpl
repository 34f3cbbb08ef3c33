{{- define "porthole.labels" -}}
app.kubernetes.io/name: porthole
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "porthole.selector" -}}
app.kubernetes.io/name: porthole
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* name is that of every object: the release's, which says what it is of. */}}
{{- define "porthole.name" -}}
{{- if contains "porthole" .Release.Name }}{{ .Release.Name }}{{ else }}{{ printf "%s-porthole" .Release.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}
